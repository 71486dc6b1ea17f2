__version__ = "0.2.0"

# The address of the documentation, without a slash at its end; "" where there is none.
DOCS_URL = ""
# Likewise the address of the sources.
SOURCE_URL = ""

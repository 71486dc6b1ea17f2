__version__ = "0.1.0"

# The address of the documentation, without a slash at its end; "" where there is none.
DOCS_URL = ""

__version__ = "0.2.0"

# The address of the documentation, without a final slash; "" if there is none.
DOCS_URL = ""
# The address of the source code, likewise.
SOURCE_URL = ""

"""The one importer of apsw and sqlite-vec: open, key, migrate, write(), snapshot(), error mapping.

driver.py finds the libraries and turns their errors into ours, opening.py opens one connection, schema.py brings a file
up to date, database.py holds the connections of a file, whole_file.py does what needs the file for itself.
"""

from localmem.db.database import Database
from localmem.db.driver import Tx, check_driver, translate
from localmem.db.schema import APPLICATION_ID, SCHEMA_VERSION, sql_file

__all__ = ["APPLICATION_ID", "SCHEMA_VERSION", "Database", "Tx", "check_driver", "sql_file", "translate"]

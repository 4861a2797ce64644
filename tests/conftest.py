"""Being here puts ``tests/`` on the import path: helpers that several tests share lie beside this file."""

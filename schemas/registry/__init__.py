"""What an operator knows of vehicles and models: columns as data, sheets read into rows.  Knows no database."""

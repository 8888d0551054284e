"""What fleet statistics are made of: the fields they read, the measures they fill, the sessions they find."""

"""Dual credit (双积分): the rules by accounting year as data, and an estimate in decimal arithmetic."""

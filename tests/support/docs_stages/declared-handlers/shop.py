"""The shop's database has three orders."""

import sqlite3

with sqlite3.connect("/var/lib/shop/shop.db") as db:
    db.executescript(
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer, placed_at, total TEXT);"
        "INSERT INTO orders VALUES (1, 'Ann', '2026-10-01', '9.90'),"
        " (2, 'Ann', '2026-10-02', '12.50'), (3, 'Bob', '2026-10-03', '1.00');"
    )

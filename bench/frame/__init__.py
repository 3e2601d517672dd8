"""How measurements are run and written down: the table, results.json, the page of the docs and its pictures."""

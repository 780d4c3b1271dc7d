"""Compare and score runs: report page, tables, charts and the files behind them."""

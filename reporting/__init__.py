"""Compare and score runs: report page, tables, charts and the files behind them.

How a comparison is made, in the order of its modules: `runs` reads run folders, `seeds` groups
them, `comparison` computes means and paired differences, `answer`, `table` and `comparison_charts`
decide what to show, `draw` draws charts for files and page, `comparison_files` and `page/` write.
`score`, `toxicity`, `frontier` and `baselines` are the work of the commands of these names.

The package is larger than its budget of 3,200 lines because it has five commands and 800 lines of
HTML, CSS and JavaScript; none of them shares more than reading, formatting and drawing.
"""

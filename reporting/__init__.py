"""Compare and score runs: report page, tables, charts and the files they are written to.

A comparison is made in the order of these modules: `runs` reads run folders, `seeds` groups them,
`comparison` computes means and paired differences, `answer`, `table` and `comparison_charts` decide
what to show, `charts` draws it for files and page, `comparison_files` and `page/` write.
`score`, `toxicity`, `frontier` and `baselines` do the work of the commands of these names.
"""

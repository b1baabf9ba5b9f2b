"""Predictions beside published GPU measurements: ``python -m benchmarks.published CSV``.

The file's rows (source, configuration, GiB, samples or tokens a second on each GPU, remark) are
read as structured cases, by the words that their sources use: ``reading``. ``models`` builds what
the source trained, in the source's own code's manner; ``predicting`` captures and judges it.

Constants that these rows set, each by several: ``graphs.hardware.table.row.EFFICIENCY`` says which.
Everything else is of data sheets, of torch's sources or of the sources' own.
"""

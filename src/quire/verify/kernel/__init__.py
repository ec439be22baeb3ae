"""The proof of fused kernels: the emitted C++ is read, executed on terms, and compared with the
graph it was made for.

    source.py    C++ text → syntax trees (strictly the subset that is emitted)
    script.py    `step` → what is called between two barriers, and with which buffers
    evaluate.py  expressions → terms
    phase.py     the statements of an epoch → what is written where, and what is read
    hooks.py     what the machine's calls (dot, attend, merge, topk …) mean
    cover.py     who writes and reads which element: coverage and races
    content.py   what a buffer holds afterwards
    match.py     which node of the graph that is
    prove.py     all of it → a certificate
"""

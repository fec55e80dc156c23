"""One module per claim: ``python -m figures`` computes, draws and checks them all.

A figure module states its claim in the first line of its docstring and has three functions:
``compute(quick)`` returns named arrays, ``draw(arrays)`` a matplotlib Figure, and
``headline(arrays)`` the rows that must hold.
"""

"""fusecell: fused ConvLSTM kernels, with the same results on every backend.

`fusecell.ops` is the functional API, `fusecell.layers` builds networks from it, `fusecell.reference` defines it.
"""

from __future__ import annotations

from fusecell._dispatch import get_num_threads, set_num_threads, version

__version__ = version()
__all__ = ["__version__", "get_num_threads", "set_num_threads"]

"""report.html: one file that shows a run, or several laid over each other, to people.

Curves are drawn as SVG here; the page needs no network, no library, and no script but for its
tooltips and its browser of tasks and samples. Imports no torch.
"""

from azr.report.page import Refresher, write_report

__all__ = ["Refresher", "write_report"]

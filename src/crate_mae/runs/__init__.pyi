from .compare_runs import ComparedRuns as ComparedRuns
from .compare_runs import read_runs as read_runs
from .contents import Run as Run
from .contents import read_run as read_run
from .measure_missing import complete_run as complete_run

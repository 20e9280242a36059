"""torchrun on a torch that lacks something the agent of ours relies on, as far as can be told: the log tail's class.

torch itself has bound the name before it is taken away, so that torchrun's own agent works as ever.
"""

import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import tail_log

del tail_log.TailLog

if __name__ == "__main__":
    sys.exit(run.main())

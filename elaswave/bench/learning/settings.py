"""Known settings of the bench on streams of tasks: the best that were found on the seeds of tuning.

For two domains and permuted digits, settings of SGD, Adam, CLASSP with p = 1 and EWC with the exact Fisher information
come from a search over 20 to 60 each on streams of the same kinds, and were checked here; of AdaGrad, CLASSP with p = 2
and EWC with the batch-mean one, 5 were tried. For split digits it were about 3 of each, for text 1: there, figures tell
more about settings than about contenders, until they are tuned with `--draws`.
"""

from collections.abc import Mapping

from elaswave.bench.learning.contenders import (
    ADAGRAD,
    ADAM,
    CLASSP_1,
    CLASSP_2,
    CLASSP_FREE,
    EWC_ADAM,
    EWC_BATCH,
    EWC_ONLINE,
    EWC_SEPARATE,
    SGD,
    Setting,
)
from elaswave.continual.fisher import Kind

KNOWN: Mapping[str, Mapping[str, Setting]] = {
    "two domains": {
        SGD: Setting(optimizer="sgd", lr=0.067),
        ADAM: Setting(optimizer="adam", lr=0.0011),
        ADAGRAD: Setting(optimizer="adagrad", lr=0.0581),
        CLASSP_1: Setting(optimizer="classp", lr=0.33, threshold=1e-07, eps=0.22, free_first=True),
        CLASSP_FREE: Setting(optimizer="classp", lr=0.4, eps=0.41, free_first=True),
        CLASSP_2: Setting(optimizer="classp", lr=0.0185, power=2.0, threshold=1.52e-05, eps=0.000664),
        EWC_SEPARATE: Setting(optimizer="sgd", lr=0.215, strength=14.2),
        EWC_ADAM: Setting(optimizer="adam", lr=0.0055, strength=23.0),
        EWC_ONLINE: Setting(optimizer="sgd", lr=0.215, strength=14.2, online=True),
        EWC_BATCH: Setting(optimizer="sgd", lr=0.177, strength=161.0, fisher=Kind.BATCH_MEAN),
    },
    "permuted digits": {
        SGD: Setting(optimizer="sgd", lr=0.026),
        ADAM: Setting(optimizer="adam", lr=0.00032),
        ADAGRAD: Setting(optimizer="adagrad", lr=0.0132),
        CLASSP_1: Setting(optimizer="classp", lr=0.324, threshold=1.57e-05, eps=1.86e-06, free_first=True),
        CLASSP_FREE: Setting(optimizer="classp", lr=0.33, eps=0.22, free_first=True),
        CLASSP_2: Setting(optimizer="classp", lr=0.0185, power=2.0, threshold=1.52e-05, eps=0.000664),
        EWC_SEPARATE: Setting(optimizer="sgd", lr=0.25, strength=8.0),
        EWC_ADAM: Setting(optimizer="adam", lr=0.0055, strength=23.0),
        EWC_ONLINE: Setting(optimizer="sgd", lr=0.4, strength=4.4, online=True),
        EWC_BATCH: Setting(optimizer="sgd", lr=0.0588, strength=636.0, fisher=Kind.BATCH_MEAN),
    },
    "split digits": {
        SGD: Setting(optimizer="sgd", lr=0.407),
        ADAM: Setting(optimizer="adam", lr=0.000458),
        ADAGRAD: Setting(optimizer="adagrad", lr=0.00352),
        CLASSP_1: Setting(optimizer="classp", lr=0.311, threshold=1.97e-08, eps=2.48e-06),
        CLASSP_FREE: Setting(optimizer="classp", lr=0.0236, eps=0.0368, free_first=True),
        CLASSP_2: Setting(optimizer="classp", lr=0.00376, power=2.0, threshold=6.72e-07, eps=5.13e-05),
        EWC_SEPARATE: Setting(optimizer="sgd", lr=0.222, strength=6.39),
        EWC_ADAM: Setting(optimizer="adam", lr=0.00421, strength=80.8),
        EWC_ONLINE: Setting(optimizer="sgd", lr=0.472, strength=19.8, online=True),
        EWC_BATCH: Setting(optimizer="sgd", lr=0.475, strength=104.0, fisher=Kind.BATCH_MEAN),
    },
    "split digits, by domain": {
        SGD: Setting(optimizer="sgd", lr=0.0802),
        ADAM: Setting(optimizer="adam", lr=0.00354),
        ADAGRAD: Setting(optimizer="adagrad", lr=0.00352),
        CLASSP_1: Setting(optimizer="classp", lr=0.311, threshold=1.97e-08, eps=2.48e-06),
        CLASSP_FREE: Setting(optimizer="classp", lr=0.0236, eps=0.0368, free_first=True),
        CLASSP_2: Setting(optimizer="classp", lr=0.00376, power=2.0, threshold=6.72e-07, eps=5.13e-05),
        EWC_SEPARATE: Setting(optimizer="sgd", lr=0.0211, strength=20.3),
        EWC_ADAM: Setting(optimizer="adam", lr=0.00421, strength=80.8),
        EWC_ONLINE: Setting(optimizer="sgd", lr=0.0297, strength=2.06, online=True),
        EWC_BATCH: Setting(optimizer="sgd", lr=0.0588, strength=636.0, fisher=Kind.BATCH_MEAN),
    },
    "text": {
        SGD: Setting(optimizer="sgd", lr=0.407),
        ADAM: Setting(optimizer="adam", lr=0.00354),
        ADAGRAD: Setting(optimizer="adagrad", lr=0.00352),
        CLASSP_1: Setting(optimizer="classp", lr=0.324, threshold=1.57e-05, eps=1.86e-06, free_first=True),
        CLASSP_FREE: Setting(optimizer="classp", lr=0.0594, eps=1.6e-06),
        CLASSP_2: Setting(optimizer="classp", lr=0.0472, power=2.0, threshold=1.32e-05, eps=0.000794),
        EWC_SEPARATE: Setting(optimizer="sgd", lr=0.222, strength=6.39),
        EWC_ADAM: Setting(optimizer="adam", lr=0.00181, strength=7.53),
        EWC_ONLINE: Setting(optimizer="sgd", lr=0.472, strength=19.8, online=True),
        EWC_BATCH: Setting(optimizer="sgd", lr=0.135, strength=201.0, fisher=Kind.BATCH_MEAN),
    },
}

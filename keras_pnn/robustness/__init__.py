"""Study the robustness of a trained model, and report on it."""

from keras_pnn.robustness.cache import merge_rows as merge_rows
from keras_pnn.robustness.call import robustness_report as robustness_report
from keras_pnn.robustness.call import robustness_rows as robustness_rows
from keras_pnn.robustness.results import Curvature as Curvature
from keras_pnn.robustness.results import ModelRobustness as ModelRobustness
from keras_pnn.robustness.results import RobustnessResult as RobustnessResult
from keras_pnn.robustness.results import Scan as Scan
from keras_pnn.robustness.results import Sensitivity as Sensitivity
from keras_pnn.robustness.results import Transfer as Transfer
from keras_pnn.robustness.results import WorstCase as WorstCase
from keras_pnn.robustness.results import Yield as Yield
from keras_pnn.robustness.specification import Specification as Specification
from keras_pnn.robustness.study import Study as Study
from keras_pnn.robustness.worst_case import worst_device as worst_device

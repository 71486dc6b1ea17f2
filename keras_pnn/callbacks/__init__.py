from keras_pnn.callbacks.checkpoint import Checkpoint as Checkpoint
from keras_pnn.callbacks.curvature import HessianEigenvalues as HessianEigenvalues
from keras_pnn.callbacks.curvature import LossLandscape as LossLandscape
from keras_pnn.callbacks.drift import DriftInjection as DriftInjection
from keras_pnn.callbacks.robustness import RobustnessReport as RobustnessReport
from keras_pnn.training.batch_order import BatchOrder as BatchOrder

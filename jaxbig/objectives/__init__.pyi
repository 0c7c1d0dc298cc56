"""Objectives, as `jaxbig.objectives.NextToken`."""

from .alphazero import AlphaZero as AlphaZero
from .average_precision import AveragePrecision as AveragePrecision
from .base import Objective as Objective
from .base import Sum as Sum
from .base import Sums as Sums
from .bootstrap import Bootstrap as Bootstrap
from .calibration import CalibrationError as CalibrationError
from .class_scores import AUC as AUC
from .class_scores import Accuracy as Accuracy
from .class_scores import MeanAveragePrecision as MeanAveragePrecision
from .classification import Classification as Classification
from .contrastive import Contrastive as Contrastive
from .ctc import CTC as CTC
from .detection import Detection as Detection
from .diffusion import Diffusion as Diffusion
from .distill import Distill as Distill
from .dpo import DPO as DPO
from .masked_token import MaskedToken as MaskedToken
from .metric import Metric as Metric
from .next_token import NextToken as NextToken
from .ppo import PPO as PPO
from .q_learning import QLearning as QLearning
from .regression import Regression as Regression
from .retrieval import Retrieval as Retrieval
from .seq2seq import Seq2Seq as Seq2Seq
from .span import Span as Span

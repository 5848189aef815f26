"The vocabulary of a notebook: `from medseg_nb.all import *`. Systems are not in it: import them by name."
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from medseg_nb.core.explore import explore
from medseg_nb.core.run import atomic, cache_dir, clock, device, pick, profile, receipt, seed, threads
from medseg_nb.core.system import card, system, systems
from medseg_nb.data.augment import Augment
from medseg_nb.data.case import Case, folds, split
from medseg_nb.data.deid import deidentify
from medseg_nb.data.dicom import read_series
from medseg_nb.data.dicomseg import read_seg, write_seg
from medseg_nb.data.files import load, save
from medseg_nb.data.grid import check_pair, same_grid
from medseg_nb.data.leakage import leaks
from medseg_nb.data.loaders import dataloaders, prepare
from medseg_nb.data.phantom import phantom
from medseg_nb.data.rater import rate
from medseg_nb.data.rtstruct import read_rtstruct
from medseg_nb.data.sampling import Patches, Slices
from medseg_nb.data.scanner import scan
from medseg_nb.data.sets import cases, sets
from medseg_nb.data.store import store
from medseg_nb.data.volume import Volume
from medseg_nb.metrics.compare import compare, ranks
from medseg_nb.metrics.conventions import explain_difference
from medseg_nb.metrics.evaluate import evaluate, summary
from medseg_nb.metrics.lab import MetricLab
from medseg_nb.metrics.overlap import dice, iou, precision, sensitivity, specificity
from medseg_nb.metrics.surface import assd, hd, hd95, nsd, panel
from medseg_nb.train.bench import bench, leaderboard
from medseg_nb.train.learner import Resume, load_net, save_net, seg_learner
from medseg_nb.train.loss import cross_entropy, dice_ce, soft_dice
from medseg_nb.train.predict import Predictor
from medseg_nb.view.editor import Editor
from medseg_nb.view.scene import scene
from medseg_nb.view.show import show
from medseg_nb.view.viewer import Viewer

__all__ = [name for name in dir() if not name.startswith('_')]

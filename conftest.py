"""Keeps the root folder off sys.path, or its nbd/ would shadow libnbd's module of the same name."""

import os
import sys

_ROOT = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [p for p in sys.path if os.path.abspath(p or os.getcwd()) != _ROOT]

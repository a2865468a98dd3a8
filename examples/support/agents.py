"""The desk's five agents, for `cuebook serve agents cuebook.examples.support.agents:Refunds` and the like."""

from cuebook.examples.support.classifier import Classifier
from cuebook.examples.support.escalations import Escalations
from cuebook.examples.support.feedback import Feedback
from cuebook.examples.support.orders import Orders
from cuebook.examples.support.refunds import Refunds

__all__ = ["Classifier", "Escalations", "Feedback", "Orders", "Refunds"]

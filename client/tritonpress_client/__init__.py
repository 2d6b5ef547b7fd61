"""Typed clients for the models that tritonpress builds and Triton serves, for sync and for async code."""

from tritonpress_client.classifier import AsyncClassifier, Classification, Classifier
from tritonpress_client.connection import AsyncConnection, Connection
from tritonpress_client.credentials import BearerToken
from tritonpress_client.errors import (
    AccessDeniedError,
    DeadlineExceededError,
    InvalidInputError,
    ModelUnavailableError,
    PartialFailureError,
    ServerError,
    ServerUnreachableError,
    TritonpressError,
)
from tritonpress_client.metadata import ModelMetadata, ModelStatus, ServerMetadata, TensorMetadata
from tritonpress_client.model_client import Limits
from tritonpress_client.observers import CallEnd, Observer
from tritonpress_client.options import Balancing, Options, Retries, SharedMemory, Tls
from tritonpress_client.question_answering import Answer, AsyncQuestionAnswering, QuestionAnswering
from tritonpress_client.recommender import AsyncRecommender, Recommendation, Recommender
from tritonpress_client.statistics import Duration, ModelStatistics

__all__ = [
    "AccessDeniedError",
    "Answer",
    "AsyncClassifier",
    "AsyncConnection",
    "AsyncQuestionAnswering",
    "AsyncRecommender",
    "Balancing",
    "BearerToken",
    "CallEnd",
    "Classification",
    "Classifier",
    "Connection",
    "DeadlineExceededError",
    "Duration",
    "InvalidInputError",
    "Limits",
    "ModelMetadata",
    "ModelStatistics",
    "ModelStatus",
    "ModelUnavailableError",
    "Observer",
    "Options",
    "PartialFailureError",
    "QuestionAnswering",
    "Recommendation",
    "Recommender",
    "Retries",
    "ServerError",
    "ServerMetadata",
    "ServerUnreachableError",
    "SharedMemory",
    "TensorMetadata",
    "Tls",
    "TritonpressError",
]

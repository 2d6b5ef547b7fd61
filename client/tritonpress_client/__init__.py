"""Typed clients for the models that tritonpress builds and Triton serves."""

from tritonpress_client.classifier import Classification, Classifier
from tritonpress_client.connection import Connection
from tritonpress_client.errors import (
    DeadlineExceededError,
    InferenceError,
    InvalidInputError,
    ModelUnavailableError,
    ServerUnreachableError,
    TritonpressError,
)
from tritonpress_client.metadata import ModelMetadata, ModelStatus, ServerMetadata, TensorMetadata
from tritonpress_client.question_answerer import Answer, QuestionAnswerer
from tritonpress_client.recommender import Recommendation, Recommender
from tritonpress_client.statistics import Duration, ModelStatistics

__all__ = [
    "Answer",
    "Classification",
    "Classifier",
    "Connection",
    "DeadlineExceededError",
    "Duration",
    "InferenceError",
    "InvalidInputError",
    "ModelMetadata",
    "ModelStatistics",
    "ModelStatus",
    "ModelUnavailableError",
    "QuestionAnswerer",
    "Recommendation",
    "Recommender",
    "ServerMetadata",
    "ServerUnreachableError",
    "TensorMetadata",
    "TritonpressError",
]

"""Triton's recommendation step: `embedding` FP32, a row a query (in any shape), and the query to the best items."""

import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).parent))
from ranking import Catalogue


class TritonPythonModel:
    """Ranks the catalogue for every query of an execution."""

    def initialize(self, args):
        self.catalogue = Catalogue.from_folder(Path(__file__).parent)

    def execute(self, requests):
        return [self._response(request) for request in requests]

    def _response(self, request):
        embeddings = pb_utils.get_input_tensor_by_name(request, "embedding").as_numpy()
        queries = pb_utils.get_input_tensor_by_name(request, "QUERY").as_numpy().ravel()
        ids = np.empty((len(queries), self.catalogue.top_k), np.object_)
        scores = np.empty((len(queries), self.catalogue.top_k), np.float32)
        rows = embeddings.reshape(len(queries), -1)
        for row, (embedding, query) in enumerate(zip(rows, queries, strict=True)):
            top, scores[row] = self.catalogue.rank(embedding, query.decode("utf-8"))
            ids[row] = self.catalogue.ids[top]
        return pb_utils.InferenceResponse([pb_utils.Tensor("ITEM_ID", ids), pb_utils.Tensor("SCORE", scores)])

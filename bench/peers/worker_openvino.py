"""OpenVINO GenAI's continuous batching pipeline in this process, stepped by hand."""

import time

import numpy as np
import openvino as ov
import openvino_genai as genai
from worker import serve

KV_CACHE_GB = 1


class OpenVino:
    def __init__(self, model: str, threads: int) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = KV_CACHE_GB
        scheduler.enable_prefix_caching = True
        scheduler.max_num_seqs = 64
        self._pipeline = genai.ContinuousBatchingPipeline(
            model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
        )
        self.version = genai.__version__
        self.precision = "INT8 weights"
        self._number = 0

    def run(self, prompts: list[list[int]], num_output_tokens: int) -> list[list[float]]:
        config = genai.GenerationConfig(max_new_tokens=num_output_tokens, ignore_eos=True, do_sample=False)
        handles = []
        for prompt in prompts:
            self._number += 1
            tokens = ov.Tensor(np.array([prompt], dtype=np.int64))
            handles.append(self._pipeline.add_request(self._number, tokens, config))
        arrivals: list[list[float]] = [[] for _ in prompts]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            now = time.perf_counter()
            for handle, times in zip(handles, arrivals, strict=True):
                while handle.can_read():
                    for output in handle.read().values():
                        times += [now] * len(output.generated_ids)
        return arrivals

    def close(self) -> None:
        """Nothing outlives the process."""


if __name__ == "__main__":
    serve(OpenVino)

"""vLLM's engine in this process, stepped by hand: no second process competes for the two cores."""

import os
import time
from importlib.metadata import version

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind
from worker import serve


class Vllm:
    def __init__(self, model: str, _threads: int) -> None:  # Threads are bound by VLLM_CPU_OMP_THREADS_BIND.
        self._engine = LLM(model, skip_tokenizer_init=True, max_model_len=2048, max_num_seqs=64).llm_engine
        quantized = self._engine.model_config.quantization
        self.version = version("vllm-cpu")
        self.precision = "W8A8, output layer bf16" if quantized else "bf16"
        self._number = 0

    def run(self, prompts: list[list[int]], num_output_tokens: int) -> list[list[float]]:
        params = SamplingParams(
            temperature=0.0,
            max_tokens=num_output_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        arrivals: dict[str, list[float]] = {}
        for prompt in prompts:
            self._number += 1
            arrivals[str(self._number)] = []
            self._engine.add_request(str(self._number), {"prompt_token_ids": prompt}, params)
        while self._engine.has_unfinished_requests():
            outputs = self._engine.step()
            now = time.perf_counter()
            for output in outputs:
                arrivals[output.request_id] += [now] * len(output.outputs[0].token_ids)
        return list(arrivals.values())

    def close(self) -> None:
        """Nothing outlives the process."""


if __name__ == "__main__":
    serve(Vllm)

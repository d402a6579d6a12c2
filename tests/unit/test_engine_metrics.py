"""Engines' own names become ours. The texts are what real servers wrote, shortened."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deployer.engine_metrics import EngineMetrics, read_engine_metrics

LLAMA = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed, excluding cached tokens
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 38
# HELP llamacpp:prompt_tokens_cached_total Number of prompt tokens reused from the cache
# TYPE llamacpp:prompt_tokens_cached_total counter
llamacpp:prompt_tokens_cached_total 24
llamacpp:prompt_seconds_total 0.268102
llamacpp:tokens_predicted_total 21
llamacpp:tokens_predicted_seconds_total 0.940732
# HELP llamacpp:n_decode_total Total number of llama_decode() calls, excluding speculative decoding
# TYPE llamacpp:n_decode_total counter
llamacpp:n_decode_total 21
llamacpp:n_tokens_max 50
llamacpp:spec_decode_num_draft_tokens_total 0
llamacpp:prompt_tokens_seconds 141.737
llamacpp:predicted_tokens_seconds 20.197
llamacpp:requests_processing 0
llamacpp:requests_deferred 0
llamacpp:n_busy_slots_per_decode 1
"""
VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="smollm2-bf16"} 0.0
vllm:num_requests_waiting{engine="0",model_name="smollm2-bf16"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="smollm2-bf16",reason="capacity"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="smollm2-bf16"} 0.0
vllm:prompt_tokens_total{engine="0",model_name="smollm2-bf16"} 62.0
vllm:prompt_tokens_created{engine="0",model_name="smollm2-bf16"} 1.795390591306289e+09
vllm:generation_tokens_total{engine="0",model_name="smollm2-bf16"} 21.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="smollm2-bf16"} 0.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="smollm2-bf16"} 2.0
vllm:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="smollm2-bf16"} 19.0
vllm:iteration_tokens_total_count{engine="0",model_name="smollm2-bf16"} 21.0
vllm:iteration_tokens_total_sum{engine="0",model_name="smollm2-bf16"} 83.0
process_cpu_seconds_total 12.5
"""
SECOND = """\
vllm:num_requests_running{engine="1",model_name="a } 9 b"} 5.0
vllm:kv_cache_usage_perc{engine="1",model_name="a } 9 b"} 0.5
vllm:request_success_total{engine="1",finished_reason="stop",model_name="a } 9 b"} 3.0
"""
"""What a data-parallel vLLM adds; made up."""


def test_llama_cpp() -> None:
    assert read_engine_metrics(LLAMA) == EngineMetrics(
        running=0, waiting=0, prompt_tokens=38, output_tokens=21, steps=21
    )
    busy = LLAMA.replace("processing 0", "processing 3").replace("deferred 0", "deferred 2")
    assert read_engine_metrics(busy).load == 5


def test_llama_cpp_after_a_million_tokens() -> None:
    long = LLAMA.replace("tokens_predicted_total 21", "tokens_predicted_total 1.23457e+06")
    assert read_engine_metrics(long).output_tokens == 1234570


def test_vllm() -> None:
    assert read_engine_metrics(VLLM) == EngineMetrics(
        running=0, waiting=0, prompt_tokens=62, output_tokens=21, requests=2, cache_used=0, steps=21
    )


def test_vllm_of_two_engines() -> None:
    both = read_engine_metrics(VLLM + SECOND)
    assert (both.running, both.requests, both.cache_used) == (5, 5, 0.5)


def test_who_tells_nothing_has_nothing() -> None:
    for text in ("", "Not Found", "<html>llamacpp:requests_processing 1</html>"):
        assert read_engine_metrics(text) == EngineMetrics()
        assert read_engine_metrics(text).load is None


def test_what_is_no_number_is_passed_over() -> None:
    text = "vllm:num_requests_running nan\nllamacpp:requests_deferred +Inf\n"
    assert read_engine_metrics(text + "llamacpp:requests_processing 1 1795500000\n").load == 1


def test_a_step_without_a_whole_answer_is_progress() -> None:
    later = LLAMA.replace("n_decode_total 21", "n_decode_total 22")
    assert read_engine_metrics(later).progress != read_engine_metrics(LLAMA).progress
    busier = LLAMA.replace("requests_deferred 0", "requests_deferred 9")
    assert read_engine_metrics(busier).progress == read_engine_metrics(LLAMA).progress


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    read_engine_metrics("llamacpp:requests_processing " + text + "\n" + text)

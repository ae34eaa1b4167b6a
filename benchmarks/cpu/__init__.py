"""Our engine on a CPU beside transformers, llama.cpp and OpenVINO GenAI: `python -m benchmarks.cpu`."""

"""Running a model: sessions, KV storage, the default cache policy and decoder, samplers, the torch backend."""

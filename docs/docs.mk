.PHONY: docs
docs: $(RUN_READY) ## Write the pages that are made from the code (docs/configuration.md, docs/telemetry.md, the chart's README)
	@PYTHONPATH=src:src/generated:. $(BIN)/python docs/generate.py

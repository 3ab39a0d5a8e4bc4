.PHONY: docs
docs: $(RUN_READY) ## Write what is made from the code (docs/configuration.md, docs/telemetry.md, the chart's README, dashboards)
	@PYTHONPATH=src:src/generated:. $(BIN)/python docs/generate.py

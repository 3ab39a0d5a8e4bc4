.PHONY: docs
docs: $(RUN_READY) ## Write what is made from the code: docs/configuration.md, docs/telemetry.md, the dashboards
	@PYTHONPATH=src:src/generated $(BIN)/python docs/generate.py
	@$(BIN)/python docs/dashboards.py

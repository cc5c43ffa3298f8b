"""Inside a real WebUI: run where the variable WEBUI_DIR names one, skipped elsewhere."""

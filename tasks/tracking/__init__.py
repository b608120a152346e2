"""What MLflow keeps: runs, models, the champion."""

"""Parts shared by the experiments: data, models, run directories, checkpoints, figures."""

"""Room 6, alignment: supervised answers, reward models, PPO with a pretraining loss, and the direct methods."""

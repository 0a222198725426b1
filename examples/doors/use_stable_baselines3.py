"""stable-baselines3: the hook around `learn`. The policy has its target network, which has rows of its own."""

from check import check, linear
from stable_baselines3 import DQN

WIDE, HIDDEN, ACTIONS, BATCH, STEPS = 4, 16, 2, 8, 40  # of CartPole: 4 numbers, 2 actions


def train(hook_of):
    options = {"learning_starts": 10, "train_freq": 1, "batch_size": BATCH, "seed": 0, "device": "cpu"}
    model = DQN("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [HIDDEN]}, **options)
    with hook_of(model.policy, model.policy.optimizer):
        model.learn(10 + STEPS)
    return model.policy.parameters()


if __name__ == "__main__":
    forward, step = linear(BATCH, WIDE, HIDDEN, ACTIONS)
    hook = check("stable-baselines3", train, STEPS * (step + forward))
    (target,) = [row for row in hook.profile.modules if row.path == "q_net_target"]
    assert target.step.without_grad == forward

"""T, V, to_np, set_lrs."""

import numpy as np
import pytest
import torch
from torch import nn, optim

from minifast import T, V, set_lrs, to_gpu, to_np
from minifast.core import device_of


@pytest.mark.parametrize(
    ("a", "dtype"),
    [
        ([1, 2], torch.int64),
        (np.array([1, 2], np.int8), torch.int64),
        (np.array([1, 2], np.uint8), torch.int64),
        ([1.0, 2.0], torch.float32),
        (np.array([1, 2], np.float16), torch.float32),
        ((1.0, 2.0), torch.float32),
        (np.array([True, False]), torch.bool),
    ],
)
def test_t_gives_07s_dtypes(a, dtype):
    t = T(a)
    assert t.dtype == dtype
    np.testing.assert_array_equal(t.numpy(), np.asarray(a))


def test_t_of_a_number_has_shape_1_and_a_tensor_passes():
    assert T(3).tolist() == [3]
    t = torch.ones(2, dtype=torch.float64)
    assert T(t) is t


def test_t_half():
    assert T([1.0], half=True).dtype == torch.float16
    assert T([1], half=True).dtype == torch.int64


def test_a_product_of_whole_numbers_as_in_the_lesson():
    m, c = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]]), np.array([10, 20, 30])
    np.testing.assert_array_equal(to_np(T(m) @ T(c)), m @ c)


def test_v_keeps_a_tensors_graph():
    # 0.7 detached it on torch 0.4 and later.
    w = torch.ones(2, requires_grad=True)
    V(w * 2).sum().backward()
    assert w.grad.tolist() == [2, 2]


def test_v_gives_a_leaf_that_collects_gradients():
    v = V(np.ones(2), requires_grad=True)
    assert v.is_leaf and v.requires_grad
    t = torch.ones(2)
    assert V(t, requires_grad=True).requires_grad and not t.requires_grad


def test_v_of_a_list_is_a_list():
    assert [t.tolist() for t in V((np.array([1, 2]), 3.0))] == [[1, 2], [3.0]]


def test_v_volatile_is_detached():
    assert not V(torch.ones(1, requires_grad=True) * 2, volatile=True).requires_grad


@pytest.mark.parametrize(
    "v", [3, 3.0, np.float32(3), torch.tensor(3), torch.tensor(3.0, requires_grad=True),
          torch.tensor(3.0, dtype=torch.bfloat16)]
)  # fmt: skip
def test_to_np_takes_any_number(v):
    assert isinstance(to_np(v), np.ndarray)
    assert to_np(v) == 3


def test_to_np_of_a_list_is_a_list_of_arrays():
    assert [a.tolist() for a in to_np([torch.ones(1), 2])] == [[1.0], 2]


def test_to_gpu_without_a_gpu_hands_back_the_thing_itself():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    t = torch.ones(1)
    assert to_gpu(t) is t


@pytest.mark.parametrize("bad", [["a"], [[1], [1, 2]], np.array([None]), {"a": 1}, "text"])
def test_what_is_no_numbers_is_told_in_words(bad):
    with pytest.raises(TypeError, match=r"(?s)cannot become a tensor.*got:.*wanted:.*fix:"):
        T(bad)


def groups(n):
    params = [nn.Parameter(torch.zeros(1)) for _ in range(n)]
    return optim.SGD([{"params": [p]} for p in params], lr=1.0)


def rates(opt):
    return [group["lr"] for group in opt.param_groups]


def test_set_lrs_takes_one_rate_or_one_for_each_group():
    opt = groups(3)
    set_lrs(opt, 0.1)
    assert rates(opt) == [0.1] * 3
    for lrs in [0.1, 0.2, 0.3], (0.1, 0.2, 0.3), np.array([0.1, 0.2, 0.3]):
        set_lrs(opt, lrs)
        assert rates(opt) == [0.1, 0.2, 0.3]


def test_a_wrong_number_of_rates_changes_none():
    opt = groups(3)
    with pytest.raises(ValueError, match="2 learning rates for 3 groups"):
        set_lrs(opt, [0.1, 0.2])
    assert rates(opt) == [1.0] * 3


def test_a_rate_in_a_tensor_stays_in_that_tensor():
    lr = torch.tensor(1.0)
    opt = optim.Adam([nn.Parameter(torch.zeros(1))], lr=lr, capturable=True)
    set_lrs(opt, 0.5)
    assert opt.param_groups[0]["lr"] is lr
    assert lr.item() == 0.5


def test_device_of_a_net_without_parameters_is_the_cpu():
    assert device_of(nn.ReLU()).type == "cpu"

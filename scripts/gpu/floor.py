"""Measures the card: copies and plain matmuls, and the matmuls and attentions of a ViT-B MR-MAE step one by one."""

import statistics

import torch
import torch.nn.functional as F


def seconds(call, repeats=10):
    """Median time of a call on the device."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def machine():
    """Yields (what, value, unit) of copies and of products of 8192 x 8192 matrices."""
    size = 1 << 28
    on_device = torch.empty(size, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(on_device)
    for name, host in (("page-locked", torch.empty(size, dtype=torch.uint8, pin_memory=True)), ("ordinary", torch.empty(size, dtype=torch.uint8))):
        yield f"host to device, {name}", size / seconds(lambda: on_device.copy_(host), 5) / 1e9, "GB/s"
        yield f"device to host, {name}", size / seconds(lambda: host.copy_(on_device), 5) / 1e9, "GB/s"
    yield "device to device, read and written", 2 * size / seconds(lambda: other.copy_(on_device)) / 1e9, "GB/s"
    for name, dtype, tf32 in (("bf16", torch.bfloat16, False), ("f32", torch.float32, False), ("tf32", torch.float32, True)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
        yield f"product of 8192 x 8192, {name}", 2 * 8192**3 / seconds(lambda: a @ b) / 1e12, "TFLOP/s"
    torch.backends.cuda.matmul.allow_tf32 = False


def products(tokens, dim):
    """(M, K, N) of the forward products of a block."""
    return [(tokens, dim, 3 * dim), (tokens, dim, dim), (tokens, dim, 4 * dim), (tokens, 4 * dim, dim)]


def step(batch=256):
    """Yields (what, value, unit) of the products and attentions of one step of a ViT-B, 49 of 196 patches visible."""
    total = flop = weights = weights_bf16 = 0.0
    # As in the programs, the parts of a long sum are added in f32.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    encoder, decoder = batch * 50, batch * 197
    shapes = [(shape, 12) for shape in products(encoder, 768)] + [(shape, 8) for shape in products(decoder, 512)]
    shapes += [((batch * 49, 768, 768), 2), ((encoder, 768, 512), 1), ((decoder, 512, 768), 1)]
    for (m, k, n), count in shapes:
        x, w, g = (torch.randn(*size, device="cuda", dtype=torch.bfloat16) for size in ((m, k), (n, k), (m, n)))
        # Forward, gradient of the input, gradient of the weight.
        weight = seconds(lambda: g.T @ x)
        total += count * (seconds(lambda: x @ w.T) + seconds(lambda: g @ w) + weight)
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
        weights_bf16 += count * seconds(lambda: g.T @ x)
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        weights += count * weight
        flop += count * 3 * 2 * m * k * n
    yield "products of a ViT-B step, batch 256", 1e3 * total, "ms"
    yield "  their rate", flop / total / 1e12, "TFLOP/s"
    yield "  of which gradients of weights, summed in f32", 1e3 * weights, "ms"
    yield "  the same, their parts added in bf16 (PyTorch's default)", 1e3 * weights_bf16, "ms"
    attention = 0.0
    for name, heads, tokens, width, count in (("encoder", 12, 50, 64, 12), ("decoder", 16, 197, 32, 8)):
        q, k, v = (torch.randn(batch, heads, tokens, width, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        grad = torch.randn(batch, heads, tokens, width, device="cuda", dtype=torch.bfloat16)
        for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION"):
            with torch.nn.attention.sdpa_kernel(getattr(torch.nn.attention.SDPBackend, backend)):

                def both():
                    F.scaled_dot_product_attention(q, k, v).backward(grad)

                time = count * seconds(both)
            yield f"attention of the {name}, {backend.split('_')[0].lower()}", 1e3 * time, "ms"
            attention += time if backend.startswith("FLASH") else 0.0
    yield "floor of the step: products and flash attention", batch / (total + attention), "img/s"

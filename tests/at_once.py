"""How servers of tests end: at once. Triton's unloading takes 3 s, and a test that has its answers waits for none."""

from tritonpress_server import Settings

AT_ONCE = Settings(drain_s=0)

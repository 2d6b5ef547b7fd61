/* A test double of NVML: GPUs whose counters move by 1,500 mJ whenever one of them is read. */
static int devices[8];
static unsigned long long energy_mj[8];

int nvmlInit_v2(void) { return INIT; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = DEVICES; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = &devices[index]; return 0; }
#ifndef WITHOUT_ENERGY
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *energy) {
    *energy = energy_mj[(int *)device - devices] += 1500;
    return ENERGY;
}
#endif
const char *nvmlErrorString(int status) { return status == 3 ? "Not Supported" : "Driver Not Loaded"; }

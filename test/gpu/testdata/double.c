/* Doubles numbers on each GPU that CUDA shows, checks them, and says how fast
 * that went. It loads the driver's library itself, so it is built without any
 * part of CUDA. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static const char *ptx =
	".version 7.0\n.target sm_70\n.address_size 64\n"
	".visible .entry twice(.param .u64 p, .param .u32 n)\n{\n"
	".reg .pred %p<2>;\n.reg .b32 %r<6>;\n.reg .b64 %rd<4>;\n.reg .f32 %f<2>;\n"
	"ld.param.u64 %rd1, [p];\nld.param.u32 %r1, [n];\n"
	"mov.u32 %r2, %ctaid.x;\nmov.u32 %r3, %ntid.x;\nmov.u32 %r4, %tid.x;\n"
	"mad.lo.s32 %r5, %r2, %r3, %r4;\nsetp.ge.u32 %p1, %r5, %r1;\n@%p1 ret;\n"
	"cvta.to.global.u64 %rd2, %rd1;\nmul.wide.u32 %rd3, %r5, 4;\nadd.s64 %rd2, %rd2, %rd3;\n"
	"ld.global.f32 %f1, [%rd2];\nadd.f32 %f1, %f1, %f1;\nst.global.f32 [%rd2], %f1;\nret;\n}\n";

static void *library;

static void *function(const char *name)
{
	void *f = dlsym(library, name);
	if (!f) {
		fprintf(stderr, "libcuda has no %s\n", name);
		exit(1);
	}
	return f;
}

#define CALL(name, types, ...)                                                 \
	do {                                                                   \
		int result = ((int (*) types)function(name))(__VA_ARGS__);     \
		if (result) {                                                  \
			fprintf(stderr, "%s: CUDA error %d\n", name, result);  \
			exit(1);                                               \
		}                                                              \
	} while (0)

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

int main(void)
{
	enum { n = 1 << 24, rounds = 2000 };
	int count;
	if (!(library = dlopen("libcuda.so.1", RTLD_NOW))) {
		fprintf(stderr, "%s\n", dlerror());
		return 1;
	}
	CALL("cuInit", (unsigned), 0);
	CALL("cuDeviceGetCount", (int *), &count);
	printf("devices: %d\n", count);
	for (int i = 0; i < count; i++) {
		int device;
		char name[100];
		void *context, *module, *kernel;
		uint64_t memory;
		unsigned size = n;
		float *numbers = malloc(n * sizeof *numbers);
		for (int k = 0; k < n; k++)
			numbers[k] = k;
		CALL("cuDeviceGet", (int *, int), &device, i);
		CALL("cuDeviceGetName", (char *, int, int), name, sizeof name, device);
		CALL("cuDevicePrimaryCtxRetain", (void **, int), &context, device);
		CALL("cuCtxSetCurrent", (void *), context);
		CALL("cuModuleLoadData", (void **, const void *), &module, ptx);
		CALL("cuModuleGetFunction", (void **, void *, const char *), &kernel, module, "twice");
		CALL("cuMemAlloc_v2", (uint64_t *, size_t), &memory, n * sizeof *numbers);
		CALL("cuMemcpyHtoD_v2", (uint64_t, const void *, size_t), memory, numbers, n * sizeof *numbers);
		void *arguments[] = {&memory, &size};
		double begin = now();
		for (int k = 0; k < rounds; k++)
			CALL("cuLaunchKernel", (void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **),
			     kernel, n / 256, 1, 1, 256, 1, 1, 0, 0, arguments, 0);
		CALL("cuCtxSynchronize", (void), );
		double took = now() - begin;
		/* Numbers double until they are infinite; once more, from the start. */
		CALL("cuMemcpyHtoD_v2", (uint64_t, const void *, size_t), memory, numbers, n * sizeof *numbers);
		CALL("cuLaunchKernel", (void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **),
		     kernel, n / 256, 1, 1, 256, 1, 1, 0, 0, arguments, 0);
		CALL("cuMemcpyDtoH_v2", (void *, uint64_t, size_t), numbers, memory, n * sizeof *numbers);
		for (int k = 0; k < n; k++)
			if (numbers[k] != 2.0f * k) {
				fprintf(stderr, "number %d is %f\n", k, numbers[k]);
				return 1;
			}
		printf("%s: right, at %.0f GB/s\n", name, 8.0 * n * rounds / took / 1e9);
		CALL("cuMemFree_v2", (uint64_t), memory);
		CALL("cuDevicePrimaryCtxRelease_v2", (int), device);
		free(numbers);
	}
	return 0;
}

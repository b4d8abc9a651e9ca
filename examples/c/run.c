/* Loads an artifact and runs it once.
 *
 * usage: run MODEL.edgec [SIZE]   fills every input with the same numbers (open sizes: SIZE, default 1) and prints each
 * output's shape, sum and first values. Build: see README.md beside this file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "capi/edgec.h"

static const size_t kSizes[] = {1, 1, 1, 2, 2, 4, 4, 8, 8, 2, 2, 4, 8};

static size_t count(const edgec_tensor* t) {
  size_t n = 1;
  for (int i = 0; i < t->rank; ++i) n *= (size_t)t->shape[i];
  return n;
}

static void fill(edgec_tensor* t) {
  const size_t n = count(t);
  for (size_t i = 0; i < n; ++i) {
    const int small = (int)(i % 2); /* inside any table */
    switch (t->dtype) {
      case EDGEC_F32: ((float*)t->data)[i] = (float)(i % 7 + 1) / 8; break;
      case EDGEC_F64: ((double*)t->data)[i] = (double)(i % 7 + 1) / 8; break;
      case EDGEC_I64: ((int64_t*)t->data)[i] = small; break;
      case EDGEC_I32: ((int32_t*)t->data)[i] = small; break;
      default: ((unsigned char*)t->data)[i * kSizes[t->dtype]] = 1;
    }
  }
}

static int fail(const char* what) {
  fprintf(stderr, "%s: %s\n", what, edgec_error());
  return 1;
}

int main(int argc, char** argv) {
  const long size = argc > 2 ? strtol(argv[2], NULL, 10) : 1;
  if (argc < 2 || size < 0 || size > 1 << 20) {
    fprintf(stderr, "usage: %s MODEL.edgec [SIZE]\n", argv[0]);
    return 2;
  }
  edgec_session* session;
  if (edgec_open(argv[1], 0, &session)) return fail("edgec_open");

  const int n_in = edgec_input_count(session), n_out = edgec_output_count(session);
  edgec_tensor* in = calloc((size_t)n_in + 1, sizeof *in);
  edgec_tensor* out = calloc((size_t)n_out + 1, sizeof *out);
  for (int i = 0; i < n_in; ++i) {
    edgec_port port;
    if (edgec_input(session, i, &port)) return fail("edgec_input");
    in[i].dtype = port.dtype;
    in[i].rank = port.rank;
    for (int d = 0; d < port.rank; ++d) in[i].shape[d] = port.shape[d] < 0 ? size : port.shape[d];
    in[i].data = malloc(count(&in[i]) * kSizes[port.dtype] + 1);
    fill(&in[i]);
  }
  if (edgec_run(session, NULL, in, n_in, out, n_out)) return fail("edgec_run");

  for (int i = 0; i < n_out; ++i) {
    edgec_port port;
    if (edgec_output(session, i, &port)) return fail("edgec_output");
    printf("%s [", port.name);
    for (int d = 0; d < out[i].rank; ++d) printf(d ? ", %lld" : "%lld", (long long)out[i].shape[d]);
    printf("]");
    if (out[i].dtype == EDGEC_F32) {
      const float* y = out[i].data;
      const size_t n = count(&out[i]);
      double sum = 0;
      for (size_t k = 0; k < n; ++k) sum += y[k];
      printf(" sum %.6g:", sum);
      for (size_t k = 0; k < n && k < 4; ++k) printf(" %.6g", y[k]);
    }
    printf("\n");
  }
  for (int i = 0; i < n_in; ++i) free(in[i].data);
  free(in);
  free(out);
  edgec_close(session);
  return 0;
}

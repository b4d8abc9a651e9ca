// Calls one compiled function (FUNCTION) as the executor would: run_function ARGUMENTS OUTPUT. ARGUMENTS holds int64
// count, extent and which argument is the output, then each argument: int64 bytes, and the bytes. All arguments are
// pointers.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { kMost = 14 };
typedef int64_t I;
extern int32_t FUNCTION(I, I, I, I, I, I, I, I, I, I, I, I, I, I, I, I);

int main(int argc, char** argv) {
  FILE* in = argc == 3 ? fopen(argv[1], "rb") : NULL;
  I head[3], a[kMost + 2] = {0}, sizes[kMost];
  if (in == NULL || fread(head, 8, 3, in) != 3 || head[0] > kMost) return 2;
  for (I i = 0; i < head[0]; ++i) {
    if (fread(&sizes[i], 8, 1, in) != 1) return 2;
    a[i] = (I)malloc((size_t)sizes[i] + 1);
    if (fread((void*)a[i], 1, (size_t)sizes[i], in) != (size_t)sizes[i]) return 2;
  }
  a[head[0]] = 0, a[head[0] + 1] = head[1];  // begin, end
  if (FUNCTION(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15]))
    return 1;
  FILE* out = fopen(argv[2], "wb");
  return out == NULL || fwrite((void*)a[head[2]], 1, (size_t)sizes[head[2]], out) != (size_t)sizes[head[2]] ||
         fclose(out);
}

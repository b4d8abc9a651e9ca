/* edgec's C interface: loads an artifact and runs it, without Python. Link with libedgec.a, the C++ library, libm,
 * pthread and dl; examples/c shows it whole.
 *
 * A session may be used by several threads, one call at a time (calls take turns). Every function that returns a status
 * returns 0, or one of edgec's codes (docs/errors.md: 1502 stands for EC1502); edgec_error() then says why. */
#ifndef EDGEC_H_
#define EDGEC_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EDGEC_API_VERSION 1
#define EDGEC_MAX_RANK 16

typedef enum edgec_dtype {
  EDGEC_BOOL = 0,
  EDGEC_I8 = 1,
  EDGEC_U8 = 2,
  EDGEC_I16 = 3,
  EDGEC_U16 = 4,
  EDGEC_I32 = 5,
  EDGEC_U32 = 6,
  EDGEC_I64 = 7,
  EDGEC_U64 = 8,
  EDGEC_F16 = 9,
  EDGEC_BF16 = 10,
  EDGEC_F32 = 11,
  EDGEC_F64 = 12
} edgec_dtype;

typedef struct edgec_session edgec_session;

/* A dense row-major array. data is aligned to its element's size. */
typedef struct edgec_tensor {
  void* data;
  edgec_dtype dtype;
  int32_t rank;
  int64_t shape[EDGEC_MAX_RANK];
} edgec_tensor;

/* An input or output: shape has -1 where the size is open. name lives as long as the session. */
typedef struct edgec_port {
  const char* name;
  edgec_dtype dtype;
  int32_t rank;
  int64_t shape[EDGEC_MAX_RANK];
} edgec_port;

/* Version of this interface that the library has: EDGEC_API_VERSION of its header. */
int32_t edgec_api_version(void);

/* Opens the artifact at `path` (mapped, not copied). threads <= 0: as many as affinity, quota and big cores allow.
 * On failure *session is NULL. Checks sizes, offsets, CPU features and the checksums of plan and code. */
int32_t edgec_open(const char* path, int32_t threads, edgec_session** session);
void edgec_close(edgec_session* session);

/* Why this thread's last call failed, with the place and the next step; "" if it did not. */
const char* edgec_error(void);

int32_t edgec_input_count(const edgec_session* session);
int32_t edgec_output_count(const edgec_session* session);
int32_t edgec_input(const edgec_session* session, int32_t index, edgec_port* port);
int32_t edgec_output(const edgec_session* session, int32_t index, edgec_port* port);

/* Language models keep their key-value caches in the session: a slot is one sequence. reserve() makes `slots` of them,
 * each with room for `capacity` tokens (memory is used as they grow); what they hold stays unless the capacity changes.
 * set_length() forgets all but a slot's first n tokens. */
int32_t edgec_reserve(edgec_session* session, int64_t slots, int64_t capacity);
int32_t edgec_length(edgec_session* session, int64_t slot, int64_t* length);
int32_t edgec_set_length(edgec_session* session, int64_t slot, int64_t n);

/* slots: of each row of the batch, which it continues (NULL: every row starts from an empty cache). parameters: by
 * name, such as "logits": for how many of the last positions logits are wanted; those not named take their default. */
typedef struct edgec_run_options {
  const int64_t* slots;
  int32_t slot_count;
  int32_t parameter_count;
  const char* const* parameter_names;
  const int64_t* parameter_values;
} edgec_run_options;

/* Runs once. options: NULL for none. inputs: one for each of the session's inputs, in their order; dtype, rank and
 * shape are checked. outputs: room for one for each output; their data belongs to the session and lasts until its next
 * run or close. */
int32_t edgec_run(edgec_session* session, const edgec_run_options* options, const edgec_tensor* inputs,
                  int32_t input_count, edgec_tensor* outputs, int32_t output_count);

#ifdef __cplusplus
}
#endif
#endif /* EDGEC_H_ */

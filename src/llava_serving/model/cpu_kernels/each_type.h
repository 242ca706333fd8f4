// Includes the file OF_TYPE twice, for float32 and for bfloat16. VALUE is the type, READ and WRITE convert it to and
// from float, and NAMED gives a function's name the suffix of the type.
#define VALUE float
#define READ(value) (value)
#define WRITE(value) (value)
#define NAMED(name) name##_float32
#include OF_TYPE
#undef VALUE
#undef READ
#undef WRITE
#undef NAMED

#define VALUE uint16_t
#define READ(value) from_bfloat16(value)
#define WRITE(value) to_bfloat16(value)
#define NAMED(name) name##_bfloat16
#include OF_TYPE

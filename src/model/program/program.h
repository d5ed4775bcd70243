/*
 * program.h
 *	  What the program that trains trees reads from its standard input, a file that it maps, and what it writes to its standard output.
 *
 * After the header come strings, each with its zero byte: by parameter its name and its value, by feature its name.  Then, at
 * `labels`, a float for each row, and at `values` one for each row and feature, row by row: first the rows that train, then those
 * that decide when to stop.
 *
 * It writes lines: "round N" for each that is done, and at the end either "error …", or "model ROUNDS BYTES" and these bytes.
 */
#ifndef MR_MODEL_PROGRAM_H
#define MR_MODEL_PROGRAM_H

#include <stdint.h>

#define MR_PROGRAM_NAME "millrace_xgboost"
#define MR_PROGRAM_MAGIC 0x6d727831

typedef struct MrProgramInput
{
	uint32_t magic;
	uint32_t nparams;
	uint32_t nfeatures;
	uint32_t rounds;
	uint32_t patience; /* rounds without a better one; 0: all are kept */
	uint64_t rows;
	uint64_t rows_to_stop; /* of these, the last ones */
	uint64_t labels; /* places from the file's begin */
	uint64_t values;
	uint64_t size;
} MrProgramInput;

#endif /* MR_MODEL_PROGRAM_H */

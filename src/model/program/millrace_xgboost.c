/*
 * millrace_xgboost.c
 *	  The program that trains boosted trees with XGBoost, for a backend that waits for it; see program.h.
 *
 * It is a process of its own, so that threads, signals, memory and crashes of the library are nobody else's.
 */
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xgboost/c_api.h>

#include "program.h"

static const MrProgramInput *input;
static const char **strings; /* names and values of parameters, then names of features */

static void
fail(const char *message)
{
	/* what follows the first line is a stack */
	printf("error %.*s\n", (int) strcspn(message, "\n"), message);
	fflush(stdout);
	exit(1);
}

/* Ends the program when the library has failed, of which nobody wants to know when and in which line. */
static void
must(int result)
{
	const char *message;
	const char *place;

	if (result == 0)
		return;
	message = XGBGetLastError();
	place = message[0] == '[' ? strstr(message, "] ") : NULL;
	if (place != NULL && strstr(place, ": ") != NULL)
		message = strstr(place, ": ") + 2;
	fail(message);
}

/* Memory runs out here rather than in PostgreSQL. */
static void
offer_to_be_killed(void)
{
	int file = open("/proc/self/oom_score_adj", O_WRONLY);

	if (file >= 0)
	{
		(void) !write(file, "900", 3);
		close(file);
	}
}

static void
map_input(void)
{
	struct stat status;
	const char *at;
	uint32_t nstrings;

	if (fstat(STDIN_FILENO, &status) != 0 || (size_t) status.st_size < sizeof(MrProgramInput))
		fail("the input is not a file as it should be");
	input = mmap(NULL, status.st_size, PROT_READ, MAP_PRIVATE, STDIN_FILENO, 0);
	if (input == MAP_FAILED)
		fail("the input cannot be mapped");
	if (input->magic != MR_PROGRAM_MAGIC || input->size != (uint64_t) status.st_size)
		fail("the input is not what this version of millrace_xgboost reads");
	nstrings = input->nparams * 2 + input->nfeatures;
	strings = calloc(nstrings + 1, sizeof(char *));
	if (strings == NULL)
		fail("out of memory");
	at = (const char *) (input + 1);
	for (uint32_t i = 0; i < nstrings; i++)
	{
		strings[i] = at;
		at += strlen(at) + 1;
	}
}

/* Some of the rows as the library has them. */
static DMatrixHandle
make_matrix(uint64_t first, uint64_t rows)
{
	const float *labels = (const float *) ((const char *) input + input->labels);
	const float *values = (const float *) ((const char *) input + input->values);
	DMatrixHandle matrix;

	must(XGDMatrixCreateFromMat(values + first * input->nfeatures, rows, input->nfeatures, NAN,
								&matrix));
	must(XGDMatrixSetFloatInfo(matrix, "label", labels + first, rows));
	must(XGDMatrixSetStrFeatureInfo(matrix, "feature_name", strings + input->nparams * 2,
									input->nfeatures));
	return matrix;
}

/* The loss of a round on the rows that decide when to stop. */
static double
loss_of(BoosterHandle booster, DMatrixHandle matrix, uint32_t round)
{
	const char *name = "stop";
	const char *text;
	const char *value;

	must(XGBoosterEvalOneIter(booster, (int) round, &matrix, &name, 1, &text));
	value = strrchr(text, ':');
	if (value == NULL)
		fail("the library has computed no loss");
	return strtod(value + 1, NULL);
}

/* Trains; returns how many rounds are kept. */
static uint32_t
train(BoosterHandle booster, DMatrixHandle matrix, DMatrixHandle stop)
{
	double least = INFINITY;
	uint32_t best = 0;

	for (uint32_t round = 0; round < input->rounds; round++)
	{
		must(XGBoosterUpdateOneIter(booster, (int) round, matrix));
		printf("round %u\n", round + 1);
		fflush(stdout);
		if (stop == NULL)
			continue;
		if (loss_of(booster, stop, round) < least)
		{
			least = loss_of(booster, stop, round);
			best = round;
		}
		else if (round - best >= input->patience)
			break;
	}
	return stop == NULL ? input->rounds : best + 1;
}

int
main(void)
{
	DMatrixHandle matrices[2] = {NULL, NULL};
	BoosterHandle booster;
	BoosterHandle kept;
	bst_ulong length;
	const char *model;
	uint32_t rounds;

	offer_to_be_killed();
	map_input();
	matrices[0] = make_matrix(0, input->rows - input->rows_to_stop);
	if (input->patience > 0)
		matrices[1] = make_matrix(input->rows - input->rows_to_stop, input->rows_to_stop);
	must(XGBoosterCreate(matrices, input->patience > 0 ? 2 : 1, &booster));
	for (uint32_t i = 0; i < input->nparams; i++)
		must(XGBoosterSetParam(booster, strings[2 * i], strings[2 * i + 1]));
	must(XGBoosterSetStrFeatureInfo(booster, "feature_name", strings + input->nparams * 2,
									input->nfeatures));
	rounds = train(booster, matrices[0], matrices[1]);
	kept = booster;
	if (input->patience > 0)
		must(XGBoosterSlice(booster, 0, (int) rounds, 1, &kept));
	must(XGBoosterSetStrFeatureInfo(kept, "feature_name", strings + input->nparams * 2,
									input->nfeatures));
	must(XGBoosterSaveModelToBuffer(kept, "{\"format\": \"ubj\"}", &length, &model));
	printf("model %u %llu\n", rounds, (unsigned long long) length);
	fwrite(model, 1, length, stdout);
	return fflush(stdout) == 0 ? 0 : 1;
}

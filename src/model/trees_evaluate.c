/*
 * trees_evaluate.c
 *	  How well trees predict what is known.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "model/trees_evaluate.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(millrace_trees_evaluate);

static const char *const metric_names[] = {"logloss", "error", "rmse", "mae", "auc"};

/* Logarithms of less would outweigh everything. */
#define LEAST_PROBABILITY 1e-16

MrTreesMetric *
mr_trees_metrics(ArrayType *names, int *n)
{
	Datum *values;
	MrTreesMetric *metrics;

	deconstruct_array(names, TEXTOID, -1, false, TYPALIGN_INT, &values, NULL, n);
	metrics = palloc(Max(*n, 1) * sizeof(MrTreesMetric));
	for (int i = 0; i < *n; i++)
	{
		char *name = TextDatumGetCString(values[i]);
		int metric = 0;

		while (metric < lengthof(metric_names) && strcmp(metric_names[metric], name) != 0)
			metric++;
		if (metric == lengthof(metric_names))
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("there is no metric \"%s\" of predictions", name),
							errhint("Known are: logloss, error, rmse, mae, auc.")));
		metrics[i] = metric;
	}
	return metrics;
}

/* A prediction and what was right. */
typedef struct Judged
{
	double predicted;
	double label;
} Judged;

static int
compare_judged(const void *a, const void *b)
{
	double x = ((const Judged *) a)->predicted;
	double y = ((const Judged *) b)->predicted;

	return x < y ? -1 : x > y;
}

/* How often one with the label is above one without it, a tie being half of it; sorts the rows. */
static double
area_under_curve(Judged *rows, uint64 n)
{
	double with = 0;
	double without = 0;
	double below = 0;

	qsort(rows, n, sizeof(Judged), compare_judged);
	for (uint64 i = 0; i < n;)
	{
		double here[2] = {0, 0};
		double value = rows[i].predicted;

		for (; i < n && rows[i].predicted == value; i++)
			here[rows[i].label > 0.5]++;
		below += here[1] * (without + here[0] / 2);
		with += here[1];
		without += here[0];
	}
	return with == 0 || without == 0 ? NAN : below / (with * without);
}

/* NaN: there is nothing to judge by. */
static double
compute_metric(MrTreesMetric metric, Judged *rows, uint64 n)
{
	double sum = 0;

	if (n == 0)
		return NAN;
	if (metric == MR_TREES_AUC)
		return area_under_curve(rows, n);
	for (uint64 i = 0; i < n; i++)
	{
		double predicted = rows[i].predicted;
		double label = rows[i].label;
		double difference = predicted - label;

		if (metric == MR_TREES_LOGLOSS)
			sum -= label * log(Max(predicted, LEAST_PROBABILITY)) +
				   (1 - label) * log(Max(1 - predicted, LEAST_PROBABILITY));
		else if (metric == MR_TREES_ERROR)
			sum += predicted > 0.5 ? 1 - label : label;
		else
			sum += metric == MR_TREES_RMSE ? difference * difference : fabs(difference);
	}
	return metric == MR_TREES_RMSE ? sqrt(sum / n) : sum / n;
}

void
mr_trees_judge(const MrTreesRows *rows, const MrTrees *trees, const MrTreesCodes *codes,
			   double constant, const MrTreesMetric *metrics, int nmetrics, double *values)
{
	Judged *judged = palloc_extended(Max(rows->n, 1) * sizeof(Judged), MCXT_ALLOC_HUGE);
	float *row = palloc(rows->input->shape->nfeatures * sizeof(float));

	for (uint64 i = 0; i < rows->n; i++)
	{
		judged[i].predicted = constant;
		judged[i].label = rows->input->labels[rows->rows[i]];
		if (trees != NULL)
		{
			mr_trees_row(rows->input, codes, rows->rows[i], row);
			judged[i].predicted = mr_trees_predict(trees, mr_trees_margin(trees, row));
		}
		if (i % 10000 == 0)
			CHECK_FOR_INTERRUPTS();
	}
	for (int m = 0; m < nmetrics; m++)
		values[m] = compute_metric(metrics[m], judged, rows->n);
	pfree(judged);
	pfree(row);
}

double
mr_trees_mean_label(const MrTreesRows *rows)
{
	double sum = 0;

	for (uint64 i = 0; i < rows->n; i++)
		sum += rows->input->labels[rows->rows[i]];
	return rows->n == 0 ? NAN : sum / rows->n;
}

Datum
mr_trees_doubles(const double *values, int n)
{
	Datum *datums = palloc(Max(n, 1) * sizeof(Datum));

	for (int i = 0; i < n; i++)
		datums[i] = Float8GetDatum(values[i]);
	return PointerGetDatum(
		construct_array(datums, n, FLOAT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/* Metrics of stored versions by the rows of one query that trained none of them, and of the mean of their labels. */
Datum
millrace_trees_evaluate(PG_FUNCTION_ARGS)
{
	int32 model_id = PG_GETARG_INT32(0);
	MrTreesShape *shape = mr_trees_shape(model_id, PG_GETARG_INT32(1));
	ArrayType *array = PG_GETARG_ARRAYTYPE_P(2);
	int nversions = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	const int32 *versions = (const int32 *) ARR_DATA_PTR(array);
	MrTreesInput *input;
	MrEntities held = {0};
	uint8 *flags;
	MrTreesRows rows;
	int nmetrics;
	MrTreesMetric *metrics = mr_trees_metrics(PG_GETARG_ARRAYTYPE_P(5), &nmetrics);
	double *found = palloc0(Max(nversions * nmetrics, 1) * sizeof(double));
	double *baseline = palloc0(Max(nmetrics, 1) * sizeof(double));
	bool nulls[4] = {false};
	Datum values[4];
	TupleDesc desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	input = mr_trees_input_read(shape, text_to_cstring(PG_GETARG_TEXT_PP(4)), PG_GETARG_OID(3));
	mr_trees_shape_sort(shape);
	if (input->count == 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("there is no row with a label to compute metrics on")));
	flags = mr_trees_flags(input, &held);
	for (int v = 0; v < nversions; v++)
	{
		MrEntities trained =
			mr_entities_read(psprintf("SELECT entities FROM millrace_state.model_%d_entity"
									  " WHERE version = %d ORDER BY block",
									  model_id, versions[v]));

		mr_entities_mark(input, flags, &trained, MR_ROW_HAS_TRAINED);
	}
	rows = mr_trees_choose(input, flags, MR_ROW_HAS_TRAINED, false);
	mr_trees_judge(&rows, NULL, NULL, mr_trees_mean_label(&rows), metrics, nmetrics, baseline);
	for (int v = 0; v < nversions; v++)
	{
		MrPredictor *predictor = mr_predictor_load(model_id, versions[v]);

		mr_trees_judge(&rows, &predictor->trees, mr_trees_codes_of(shape, predictor), 0, metrics,
					   nmetrics, found + v * nmetrics);
		mr_predictor_release(predictor);
	}
	values[0] = mr_trees_doubles(found, nversions * nmetrics);
	values[1] = mr_trees_doubles(baseline, nmetrics);
	values[2] = Int64GetDatum(rows.n);
	values[3] = Int64GetDatum(input->rows - (int64) rows.n);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
